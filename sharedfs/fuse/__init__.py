"""FUSE on the wire: messages as bytes, the device, and the relay between kernel, libfuse and handlers."""
