"""What tests share: real services, and faults in front of them."""
