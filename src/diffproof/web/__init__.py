"""What people look at in a browser: pages made of run folders."""
