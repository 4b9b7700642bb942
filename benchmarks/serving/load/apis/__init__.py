"""The APIs that a server may have: of each, how connections are opened and calls are sent.

`opened(settings)` of each module connects, and yields what is served and a function that sends for each connection. It
raises CallFailed if the server can't be reached, refuses the key or does not know the model, and UserError if it does
not accept so many connections. All are open before the first call, so that none connects while others are measured.
"""
