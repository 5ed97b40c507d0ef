"""What grows with the number of trials and nodes, measured on one machine."""
