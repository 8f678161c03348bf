"""The roles of a secure computation, and how they run: in threads, in processes, on hosts."""
