"""The pages in the browser: collecting votes, chatting, comparing, looking back."""
