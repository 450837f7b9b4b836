"""What happened, recorded and shown. Nothing here can change a number."""
