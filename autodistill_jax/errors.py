"""What is told to a user whose input cannot be used?"""


class UserError(Exception):
    """A mistake in the input, not in the program.

    The message is one line: what was got, what is needed, what to do. The command
    line prints it without a traceback and exits with 2.
    """
