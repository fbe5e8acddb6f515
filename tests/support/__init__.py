"""What tests share, named by what it gives."""
