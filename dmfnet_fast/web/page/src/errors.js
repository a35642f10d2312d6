/** Something that the user can mend; its message names the file, says what is wrong and what to do. */
export class UserError extends Error {
  constructor(message) {
    super(message);
    this.name = "UserError";
  }
}
