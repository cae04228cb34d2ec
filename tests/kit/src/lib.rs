//! Parts for tests and the demo: stand-in model server, small agent, sandbox probes.
