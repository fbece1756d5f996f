"""The shipped models, the pictures they are trained on and the scripts that train and judge them."""
