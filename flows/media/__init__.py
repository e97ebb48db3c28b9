"""What comes from outside: hosts, downloads, start images before money is spent, videos before they are archived."""
