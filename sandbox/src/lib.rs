//! Policy language to plan, egress and model-gateway rules: pure.
