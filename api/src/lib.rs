//! The public surface: D-Bus tree org.agentd1, error codes, versions.
