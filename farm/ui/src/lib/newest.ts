// Which of several answers to the same question is shown?

/** Numbers the calls that ask the same: one that is answered after a later one tells what was before. */
export class Newest {
  #asked = 0;
  #shown = 0;

  /** The number of a call that is made now. */
  ask(): number {
    return ++this.#asked;
  }

  /** Whether the answer to a call is to be shown: those of the calls before it no longer are. */
  shows(call: number): boolean {
    if (call < this.#shown) return false;
    this.#shown = call;
    return true;
  }
}
