"""What is known of files: light, so that launcher, phases and the operator's command look with the same eyes."""
