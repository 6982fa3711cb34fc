"""What apps, agents and browsers connect to."""
