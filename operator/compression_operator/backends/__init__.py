"""Jobs on a cluster: what every kind shares, and one folder per kind."""
