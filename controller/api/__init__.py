"""What crosses the socket of the controller: types, and how to ask."""
