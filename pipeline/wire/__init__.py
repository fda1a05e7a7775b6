"""Messages and the sockets that carry them.

The only room that imports zmq. It knows who may connect and how a frame looks, but not what a
message means.
"""
