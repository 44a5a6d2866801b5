"""The controller: splits each page's cost among its users and takes it off their memory limits."""
