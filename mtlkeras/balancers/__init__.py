def get(identifier):
    return None
