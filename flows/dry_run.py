"""What can be tried before money is spent: whether the API is there and takes the key."""

from apixo import ApixoError, AuthenticationError, NotSentError
from flows.resources import Resources


async def check_api(resources: Resources) -> None:
    """Asks the API about a task that does not exist: free of charge, and it shows what a submission would meet.

    Raises:
        NotSentError: the API cannot be reached.
        AuthenticationError: it does not take the key.
    """
    try:
        await resources.client.status_once("dry-run")
    except (AuthenticationError, NotSentError):
        raise
    except ApixoError:
        pass  # it answers, and does not know the task
