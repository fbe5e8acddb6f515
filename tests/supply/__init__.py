"""What the installation consists of: its locks, its licences, its known vulnerabilities and its bill of materials."""
