// What the user says of an answer: one click where it is right, one choice where it is not.

const THANKS = {
  accepted: "Thank you. The model will learn from it, or be judged by it.",
  pending: "Thank you. It does not count yet.",
  quarantined: "Thank you. Somebody will look at it first.",
  proposed: "Thank you. The model does not know this label yet.",
  rejected: "Thank you. Somebody has decided that this picture is not learnt from.",
  captured: "Thank you. The picture is kept, and nothing is learnt from it yet.",
};
// By the reason of the state, where that tells more.
const REASONS = {
  NEEDS_LABEL: "Thank you. It counts once somebody says what it is.",
  NEEDS_VOTES: "Thank you. It counts once enough others say the same.",
  VOTES_DIFFER: "Thank you. Others say something else; it counts once more people agree.",
  WAITS_FOR_EMBEDDING: "Thank you. It is compared with similar pictures first.",
  WAITS_FOR_REVIEW: "Thank you. It counts once a reviewer says the same.",
  UNDECIDABLE: "Thank you. A reviewer has said that nobody can tell what it is.",
};
const MOST_CHARACTERS = 200;

// Fills `place`; `send` takes {correct} or {label} and returns a promise of the server's answer.
export function offerFeedback(place, { best, labels, name, send }) {
  const told = document.createElement("p");
  const right = document.createElement("button");
  const other = document.createElement("select");
  const asking = [right, other];
  told.role = "status";
  Object.assign(right, { type: "button", className: "quiet right", textContent: "That is right", onclick: () => tell({ correct: true }) });
  right.ariaLabel = `${best} is right for ${name}`;
  other.ariaLabel = `What ${name} shows instead`;
  other.className = "other";
  other.append(new Option("It is …", ""), ...labels.filter((label) => label !== best).map((label) => new Option(label)), new Option("Something else …", " "));
  other.onchange = () => (other.value === " " ? askForLabel() : other.value && tell({ label: other.value }));

  function askForLabel() {
    const input = document.createElement("input");
    Object.assign(input, { className: "other", maxLength: MOST_CHARACTERS, placeholder: "What is it?", ariaLabel: other.ariaLabel });
    input.onchange = () => input.value.trim() && tell({ label: input.value.trim() });
    asking[1] = input;
    other.replaceWith(input);
    input.focus();
  }

  async function tell(verdict) {
    for (const each of asking) each.disabled = true;
    told.textContent = "Sending …";
    try {
      const { state, state_reason: reason } = await send(verdict);
      told.textContent = REASONS[reason] ?? THANKS[state] ?? "Thank you.";
      for (const each of asking) each.hidden = true;
    } catch ({ message }) {
      told.textContent = message;
      for (const each of asking) each.disabled = false;
      if (asking[1] === other) other.value = "";
    }
  }

  place.replaceChildren(right, other, told);
}
