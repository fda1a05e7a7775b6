"""The stage process: sockets, clock and files around the coordinator."""
