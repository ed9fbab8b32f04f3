"""What people and `make` run here: the demo, the services, the soak."""
