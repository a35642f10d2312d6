/** Calls to the worker. */

export class Client {
  constructor(worker) {
    this.worker = worker;
    this.waiting = new Map();
    this.next = 0;
    worker.onmessage = ({ data: { id, result, error, progress } }) => {
      const call = this.waiting.get(id);
      if (!call) return;
      if (progress) {
        call.report?.(progress.done, progress.of);
        return;
      }
      this.waiting.delete(id);
      if (error === undefined) call.resolve(result);
      else call.reject(new Error(error));
    };
    worker.onerror = (event) => {
      event.preventDefault();
      for (const { reject } of this.waiting.values()) reject(new Error(event.message || "the worker could not be started"));
      this.waiting.clear();
    };
  }

  /** @returns {Promise<any>} the answer; rejected with an Error whose message is for the user */
  call(call, payload = {}, report = null, transfer = []) {
    const id = this.next++;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject, report });
      this.worker.postMessage({ id, call, payload }, transfer);
    });
  }

  cancel() {
    this.worker.postMessage({ id: -1, call: "cancel" });
  }
}
