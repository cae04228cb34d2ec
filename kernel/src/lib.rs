//! The host as agentd sees it: raw system calls, probes, `/proc` and `/sys` readers.
#![cfg_attr(not(feature = "std"), no_std)]
