"""The lab: what every policy would have made of what happened, from recorded and generated traces."""
