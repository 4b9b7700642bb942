"""Ports and connections, and what wraps every call: acceptance, authentication, interceptor."""
