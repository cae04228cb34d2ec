//! The admin command: everything that agentd offers, for people and scripts.
