"""In the front end and the scheduler: what an engine asks for, admission, the server."""
