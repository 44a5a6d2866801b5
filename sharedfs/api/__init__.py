"""What crosses the Unix sockets: types, and HTTP on both sides."""
