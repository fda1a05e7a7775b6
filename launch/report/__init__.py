"""`darts report`: the files of finished or running runs -> one HTML page that works offline."""
