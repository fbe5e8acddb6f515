"""What operators use: the command, the demo, the real servers and the real API that demo and tests run on."""
