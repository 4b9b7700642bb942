"""`tuneserve predict`: a file in, a file with the model's answers out.

source    the rows of files, in windows
tasks     what a row needs to be asked, and what the answer adds to it
asking    asks a server for the answers to one window after another
parts     keeps answered windows until the output is whole, also over a restart
run       all of it, with a server of its own
"""
