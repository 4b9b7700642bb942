"""The commands of the command line, by the headings of its help. Each reads its flags and calls one function of one
package. These packages import torch, so they are imported where they are called: `--help` stays fast.
"""
