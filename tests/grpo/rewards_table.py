"""Answers made by hand, and what each rule gives for them."""

from typing import NamedTuple


class Row(NamedTuple):
    """One answer to a question whose right answer is known: what GSM8K's two rules and math-verify give."""

    right: str
    text: str
    strict: float
    flexible: float
    math: float


NUMBERS = [
    Row("72", "#### 72", 1, 1, 1),
    Row("72", "48 / 2 = 24, and 48 + 24 = 72.\n#### 72", 1, 1, 1),
    Row("72", "#### 73", 0, 0, 0),
    Row("0", "#### 0", 1, 1, 1),
    # where the number stands
    Row("72", "The answer is 72", 0, 1, 1),
    Row("72", "x = 72", 0, 1, 1),
    Row("72", "48+24 = <<48+24=72>>72", 0, 1, 1),
    Row("72", "####72", 0, 1, 0),  # math-verify wants white space before a number
    Row("72", "####  72", 0, 1, 1),
    Row("72", "####\n72", 0, 1, 1),
    Row("72", "### 72", 0, 1, 1),
    Row("72", "##### 72", 1, 1, 1),
    # several of them, and what follows
    Row("72", "#### 10\nNo:\n#### 72", 1, 1, 1),
    Row("72", "#### 72\nNo:\n#### 10", 0, 0, 0),
    Row("72", "#### 72 clips", 1, 1, 1),
    Row("72", "#### 72\nOf these she sold 24 in May", 1, 0, 0),
    Row("18", "#### 18 dollars and 50 cents", 1, 0, 0),
    # none
    Row("72", "", 0, 0, 0),
    Row("72", "I do not know.", 0, 0, 0),
    Row("72", "#### seventy-two", 0, 0, 0),
    Row("72", "#### ...", 0, 0, 0),
    Row("72", "\\boxed{", 0, 0, 0),
    # commas, currency, full stops
    Row("1234", "#### 1234", 1, 1, 1),
    Row("1234", "#### 1,234", 1, 0, 1),
    Row("1234567", "#### 1,234,567", 1, 0, 1),
    Row("72", "#### $72", 0, 1, 1),
    Row("72", "#### 72$", 1, 1, 1),
    Row("72", "#### 72.", 0, 0, 1),
    Row("72", "#### 72, that is all", 1, 0, 1),
    Row("72", "It is 72 .", 0, 1, 1),
    # negatives
    Row("-3", "#### -3", 1, 1, 1),
    Row("-3", "#### 3", 0, 0, 0),
    Row("3", "#### -3", 0, 0, 0),
    Row("-3", "#### - 3", 0, 0, 0),
    Row("-3", "#### \u22123", 0, 0, 0),  # the minus sign of Unicode
    Row("-3", "$\\boxed{-3}$", 0, 1, 1),
    Row("0", "#### -0", 0, 0, 1),
    Row("5", "10-5", 0, 0, 1),
    # decimals, fractions, percent
    Row("0.5", "#### 0.5", 1, 1, 1),
    Row("0.5", "#### .5", 0, 0, 1),
    Row("0.5", "#### 0.50", 0, 0, 1),
    Row("0.5", "#### 1/2", 0, 0, 1),
    Row("72", "#### 72.0", 0, 0, 1),
    Row("72", "#### 072", 0, 0, 1),
    Row("0.5", "#### 50%", 0, 0, 1),
    Row("50", "#### 50%", 1, 1, 1),
    # the last 300 characters
    Row("72", "w " * 200 + "#### 72", 1, 1, 1),
    Row("72", "#### 72" + " w" * 146 + " ", 1, 1, 1),
    Row("72", "#### 72" + " w" * 147, 0, 1, 1),
    Row("72", "#### 72" + " w" * 200, 0, 0, 1),
    # LaTeX
    Row("\\frac{1}{2}", "So it is $\\frac{2}{4}$.", 0, 0, 1),
    Row("$\\frac{1}{2}$", "\\boxed{0.5}", 0, 0, 1),
    Row("2\\sqrt{3}", "$\\boxed{\\sqrt{12}}$", 0, 0, 1),
    Row("2\\sqrt{3}", "$\\boxed{2}$", 0, 0, 0),
    Row("x^2+2x+1", "\\boxed{(x+1)^2}", 0, 0, 1),
    Row("\\{1,2\\}", "$\\{2, 1\\}$", 0, 0, 1),
    Row("7", "\\boxed{7}, not 8", 0, 0, 1),
    Row("72", "$\\frac{1}{0}$", 0, 0, 0),
    Row("72", "$9^{99}$", 0, 0, 0),
]

FORMS = [
    ("<think>2 + 2</think><answer>4</answer>", 1),
    ("<think>2 + 2\n= 4</think>\n\n<answer>4</answer>\n", 1),
    ("<think></think><answer></answer>", 1),
    ("<think>a < b</think><answer>b > a</answer>", 1),
    ("4", 0),
    ("", 0),
    ("<answer>4</answer>", 0),
    ("<think>2 + 2</think>4", 0),
    ("<think>2 + 2<answer>4</answer>", 0),
    ("<answer>4</answer><think>2 + 2</think>", 0),
    ("So: <think>2 + 2</think><answer>4</answer>", 0),
    ("<think>2 + 2</think><answer>4</answer>!", 0),
    ("<think>2</think><think>2</think><answer>4</answer>", 0),
    ("<think>2 + 2</think><answer>3</answer><answer>4</answer>", 0),
    ("<Think>2 + 2</Think><Answer>4</Answer>", 0),
]
"""Completions, and whether they are of the form that `format_reward` wants by default."""

TASKS = [
    ("4 + 3 =", "chain_sum", "7", "7", 1.0),
    ("4 + 3 =", "chain_sum", "7", " 7\n", 1.0),
    ("4 + 3 =", "chain_sum", "7", "It is <answer>7</answer>.", 1.0),
    ("4 + 3 =", "chain_sum", "7", "<answer>8</answer> or <answer>\n7 </answer>", 1.0),
    ("4 + 3 =", "chain_sum", "7", "<answer>7</answer> or <answer>8</answer>", 0.0),
    ("4 + 3 =", "chain_sum", "7", "8", 0.0),
    ("4 + 3 =", "chain_sum", "7", "", 0.0),
    ("4 + 3 =", "chain_sum", "7", "It is 7.", 1 / 8),
    ("4 - 7 =", "chain_sum", "-3", "-3", 1.0),
    ("4 - 7 =", "chain_sum", "-3", "3", 0.0),
]
"""Question, task, right answer, completion and the scorer's number; in a longer text the right answer counts for its
share of it."""
