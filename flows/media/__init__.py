"""Handles what comes from outside: hosts, downloads, images before money is spent, videos before they are archived."""
