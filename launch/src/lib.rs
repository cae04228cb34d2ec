//! The wire plan, the floor and the static agentd-launch program that applies a plan.
