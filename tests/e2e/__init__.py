"""The whole pipeline from outside: real servers, a real worker, a real browser."""
