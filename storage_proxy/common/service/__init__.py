"""What every program of the house needs to run as a service: settings, logs, listeners, health, endpoints."""
