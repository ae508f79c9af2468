"""What Serve runs: extensions and their kinds, the gateway, the catalogue actor."""
