"""Messages between roles: the transport that carries and counts them, links of processes and hosts, and emulated networks."""
