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
    this.failure = null;
    worker.onerror = (event) => {
      this.failure = new Error(`the browser cannot run the page's worker (${event.message ?? "no reason given"}); try another browser`);
      for (const { reject } of this.waiting.values()) reject(this.failure);
      this.waiting.clear();
    };
  }

  /** @returns {Promise<any>} the answer; rejected with an Error whose message is for the user */
  call(call, payload = {}, report = null, transfer = []) {
    if (this.failure) return Promise.reject(this.failure);
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
