"""Small deliberate bugs in what decides and learns: does a test notice each?"""
