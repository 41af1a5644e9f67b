// What the page says, in English and Chinese; the browser's language chooses. A {name} is filled in by `t`.

const EN = {
  documents: "Documents", conversation: "Conversation", memory: "Memory", text: "Text", page: "Page",
  add: "Add a document", drop: "Drop files here, or choose them", dropNow: "Let go to read it",
  dropHint: "PDF, EPUB, HTML, DOCX, Markdown, subtitles, mail or text. It stays on this server.",
  emptyTitle: "Nothing to ask yet", emptyBody: "Add a document. It is read once; every question afterwards starts where the reading ended.",
  askTitle: "Ask {name}", askTitleMany: "Ask {n} documents", askBody: "Answers come with the passages they were written from, and say so when the document does not hold them.",
  pickTitle: "Choose a document", pickBody: "Tick one or several on the left.",
  example: "What is this document about?",
  placeholder: "Ask a question…", ask: "Ask", stop: "Stop", question: "Question",
  mode: "How it answers", memorag: "Memory and passages", rag: "Passages only", memoryMode: "Memory only", gist: "The whole document",
  loadModel: "Loading the model", thinking: "Thinking", searching: "Searching the document", recalling: "Asking the memory", loading: "Loading the memory", writing: "Writing", weighing: "Weighing the answer", queued: "Waiting for {n} before you",
  doubt: "The document does not clearly say this.", doubtMore: "Check the passages below.", refused: "The document does not answer this.", guess: "If anything, it would be: ", cut: "The answer was cut at its longest length.",
  sure: "{n} % likely right", stopped: "Stopped.", seconds: "{n} s",
  sources: "Passages", source: "Passage {n}", othersRead: "Also read, not cited: {n}", pageN: "p. {n}", characters: "characters {a}–{b}",
  copy: "Copy with sources", copied: "Copied", copyFailed: "The browser did not allow copying.", exportMd: "Export", fresh: "New conversation",
  recalled: "What memory recalled", nothingRecalled: "The passages settled this question; memory was not asked.", draft: "First answer from memory", closer: "Questions it asked itself",
  touched: "Where this question looked", legendView: "read from memory", legendRecalled: "recalled", legendPassage: "passage", legendCited: "cited",
  memoryEmpty: "After a question you see here what memory recalled and which places of the document it touched.",
  stripLabel: "{name}: {view} stretches read from memory, {recalled} recalled, {passages} passages, {cited} cited",
  close: "Close", earlier: "Earlier text", later: "Later text", newTab: "Open the file",
  pages: "{n} pages", onePage: "1 page", tokens: "{n} tokens", smaller: "{n}× smaller", quality: "{n} % of next tokens as exact",
  building: "Reading", waiting: "Waiting", left: "{n} left", cancel: "Cancel", retry: "Try again", dismiss: "Dismiss", built: "{name} is ready", uploading: "Uploading",
  remove: "Delete {name}", removeAsk: "Delete “{name}”?", removeBody: "Its memory and the copy kept on the server are deleted. Conversations on this page stay.", removeYes: "Delete", removeNo: "Keep it",
  only: "Ask only {name}", also: "Ask {name} too",
  offline: "The server cannot be reached. Trying again…", failed: "This did not work: {error}", broken: "The connection ended before the answer did.",
  keyTitle: "This server asks for a key", keyBody: "It is in the file that the server was started with. It stays in this tab.", keyLabel: "Key", keyGo: "Continue", keyWrong: "That key is not right.",
  hints: "Enter asks · Shift+Enter new line · 1–9 opens a passage · Esc closes",
  skip: "Skip to the question", you: "You",
  exported: "Conversation with {name}",
};

const ZH = {
  documents: "文档", conversation: "对话", memory: "记忆", text: "正文", page: "页面",
  add: "添加文档", drop: "把文件拖到这里，或点击选择", dropNow: "松开即可读入",
  dropHint: "PDF、EPUB、HTML、DOCX、Markdown、字幕、邮件或文本。文件只留在这台服务器上。",
  emptyTitle: "还没有可以提问的文档", emptyBody: "添加一份文档。它只读一遍，之后每个问题都从读完的地方开始。",
  askTitle: "向《{name}》提问", askTitleMany: "向 {n} 份文档提问", askBody: "回答附有所依据的段落；文档里没有答案时会如实说明。",
  pickTitle: "请选择文档", pickBody: "在左侧勾选一份或几份。",
  example: "这份文档讲的是什么？",
  placeholder: "输入问题……", ask: "提问", stop: "停止", question: "问题",
  mode: "回答方式", memorag: "记忆与段落", rag: "只用段落", memoryMode: "只用记忆", gist: "通览全文",
  loadModel: "正在载入模型", thinking: "正在思考", searching: "正在检索文档", recalling: "正在询问记忆", loading: "正在载入记忆", writing: "正在书写", weighing: "正在衡量答案", queued: "前面还有 {n} 个问题",
  doubt: "文档没有明确说明这一点。", doubtMore: "请核对下面的段落。", refused: "文档没有回答这个问题。", guess: "若一定要说，可能是：", cut: "回答已到长度上限，被截断。",
  sure: "{n}% 可能正确", stopped: "已停止。", seconds: "{n} 秒",
  sources: "段落", source: "段落 {n}", othersRead: "另读了 {n} 个段落，未引用", pageN: "第 {n} 页", characters: "第 {a}–{b} 字",
  copy: "连同出处复制", copied: "已复制", copyFailed: "浏览器不允许复制。", exportMd: "导出", fresh: "新对话",
  recalled: "记忆想起的内容", nothingRecalled: "段落已足以回答，没有询问记忆。", draft: "来自记忆的初步回答", closer: "它追问的问题",
  touched: "这个问题看过的位置", legendView: "从记忆读取", legendRecalled: "想起", legendPassage: "段落", legendCited: "引用",
  memoryEmpty: "提问之后，这里显示记忆想起了什么，以及触及文档的哪些位置。",
  stripLabel: "{name}：从记忆读取 {view} 处，想起 {recalled} 处，段落 {passages} 个，引用 {cited} 个",
  close: "关闭", earlier: "前文", later: "后文", newTab: "打开文件",
  pages: "{n} 页", onePage: "1 页", tokens: "{n} 词元", smaller: "缩小 {n} 倍", quality: "{n}% 的后续词元与原样一致",
  building: "正在读", waiting: "等待中", left: "还需 {n}", cancel: "取消", retry: "重试", dismiss: "知道了", built: "《{name}》可以提问了", uploading: "正在上传",
  remove: "删除《{name}》", removeAsk: "删除《{name}》？", removeBody: "它的记忆和服务器上保存的副本都会被删除。本页上的对话不受影响。", removeYes: "删除", removeNo: "保留",
  only: "只问《{name}》", also: "同时问《{name}》",
  offline: "连不上服务器，正在重试……", failed: "没有成功：{error}", broken: "回答还没结束，连接就断开了。",
  keyTitle: "这台服务器需要密钥", keyBody: "密钥在服务器启动时所用的文件里，只保存在这个标签页中。", keyLabel: "密钥", keyGo: "继续", keyWrong: "密钥不正确。",
  hints: "回车提问 · Shift+回车换行 · 1–9 打开段落 · Esc 关闭",
  skip: "跳到提问处", you: "你",
  exported: "与《{name}》的对话",
};

export const language = (navigator.languages?.[0] ?? navigator.language).toLowerCase().startsWith("zh") ? "zh" : "en";
const STRINGS = language === "zh" ? ZH : EN;

export function t(name, values = {}) {
  return STRINGS[name].replace(/\{(\w+)\}/g, (_, key) => values[key]);
}

const LOCALE = language === "zh" ? "zh-CN" : navigator.language;
const COMPACT = new Intl.NumberFormat(LOCALE, { notation: "compact", maximumFractionDigits: 1 });
const PLAIN = new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 1 });

export const count = (number) => COMPACT.format(number);
export const plain = (number) => PLAIN.format(number);

export function bytes(number) {
  const units = ["B", "kB", "MB", "GB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(number, 1)) / 3));
  return `${PLAIN.format(number / 1000 ** power)} ${units[power]}`;
}

export function duration(seconds) {
  const unit = seconds < 90 ? ["second", seconds] : ["minute", seconds / 60];
  return new Intl.NumberFormat(LOCALE, { style: "unit", unit: unit[0], maximumFractionDigits: 0 }).format(Math.ceil(unit[1]));
}
