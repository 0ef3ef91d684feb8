// The page's texts in English and Korean, by the browser's language or the reader's choice.

import { setting } from "./conversations.js";

const EN = {
  chat: "Chat", lab: "Lab", models: "Models", newChat: "New chat", conversations: "Conversations", settings: "Settings",
  close: "Close", menu: "Conversations", theme: "Light or dark", language: "한국어로 보기", skip: "To the message box",
  model: "Model", noModel: "No model is loaded.", loading: "The server is loading its model …", unreachable: "The server cannot be reached.",
  message: "Message", placeholder: "Ask anything …", send: "Send", stop: "Stop", keys: "Enter sends · Shift+Enter starts a line · Esc stops · Alt+N new chat · Alt+1–3 views",
  hello: "What would you like to know?", helloSub: "Answers come from this machine, and conversations stay in this browser.",
  example1: "Explain how a paged KV cache works, with an analogy.", example2: "Write a Python function that merges two sorted lists.", example3: "Compare TCP and UDP in a table.",
  you: "You", assistant: "Answer", toolResult: "Tool result", edit: "Edit", retry: "Retry", copy: "Copy", copied: "Copied", notCopied: "Not copied", code: "code",
  remove: "Delete", removeSure: "Delete this conversation?", cancel: "Cancel", resend: "Send again", untitled: "Untitled",
  thinking: "Thinking …", thought: "Thoughts", stopped: "stopped", cutOff: "max_tokens reached", waiting: "Waiting for the first token …",
  rate: "tok/s", rateHelp: "Tokens a second after the first one", ttft: "TTFT", ttftHelp: "Time to first token, measured in this browser",
  prompt: "prompt", cached: "cached", output: "output", thoughts: "thoughts", total: "total",
  call: "Tool call", callResult: "Result for the model", sendResult: "Send result", callPlaceholder: "{\"temperature_c\": 21}",
  export: "Export", import: "Import", imported: "Conversations added: ", notImported: "This file has no conversations of this page.", full: "This browser has no room left to keep the conversation.",
  keySection: "Keys", apiKey: "API key", adminKey: "Admin key", keyHelp: "Kept until this tab is closed, and sent to this server only.",
  needKey: "This server asks for an API key, or for another one than this. Enter it in the settings.", openSettings: "Open settings",
  system: "System prompt", sampling: "Sampling", samplingHelp: "Empty fields leave the choice to the server.", format: "Structured output and tools",
  think: "Thoughts", serverDefault: "as the model does", on: "on", off: "off", schema: "JSON schema", tool: "Tool definition", toolChoice: "Tool choice",
  tryExample: "Insert example", clear: "Clear", badJson: "is not valid JSON", notNumber: "is not a number", reset: "Reset all",
  live: "Live", paused: "Paused", every: "every second", notAvailable: "not available", unknownYet: "none yet",
  stepTime: "Time of a step", stepTimeHelp: "The engine thread's time in the last minute", plan: "Plan", execute: "Execute", commit: "Commit and send", idle: "Idle", perStep: "a step", steps: "Steps by kind", prefill: "prefill", decode: "decode", mixed: "mixed", failed: "failed",
  pages: "KV pages", pagesHelp: "Each page holds the keys and values of {n} tokens", requests: "Requests", tree: "Prefix tree", free: "Free", hostTier: "Host tier", used: "used", evicted: "Evicted without a copy",
  memory: "Memory", weights: "Weights", kvPool: "KV pool", hostPool: "Host tier", process: "Whole process (RSS)",
  queue: "Queue", policy: "Policy", running: "Running", waitingRequests: "Waiting", forCapacity: "for room", forPrefix: "for a prefix", waitingTokens: "Tokens to compute", preempted: "Preempted", queueTime: "Mean wait", limit: "limit",
  cache: "Prefix cache", hitRate: "Prompt tokens from the cache", sinceStart: "since the start", lastMinute: "last minute", resultCache: "Result cache", hits: "hits", misses: "misses",
  speculation: "Speculation", acceptance: "Drafted tokens accepted", perDraft: "Accepted in a step", byPosition: "Accepted by position",
  speed: "Speed", outputRate: "Output tokens a second", promptRate: "Prompt tokens a second", meanTtft: "Mean TTFT", meanItl: "Mean time between tokens",
  server: "Server", device: "Device", executor: "Executor", context: "Context", kernels: "Kernels", tokens: "tokens", version: "Version", maxRunning: "Running at most",
  adminHelp: "Loading, sleeping and waking need the admin key (--admin-api-key).", noAdmin: "This server was started without --admin-api-key, or another server answers here: its models cannot be changed. These are the ones it serves.",
  wrongAdmin: "The admin key is missing or wrong.", load: "Load", unload: "Unload", sleep: "Sleep", wake: "Wake", state: "State", healthy: "healthy", unhealthy: "failing", done: "Done: ",
  ready: "ready", asleep: "asleep", loadingState: "loading", unloaded: "unloaded", waking: "waking", falling_asleep: "going to sleep", unloading: "unloading", failedState: "failed",
  loadNew: "Load another model", loadNewHelp: "A folder, a hub id (org/name) or synthetic:<preset>", loadName: "Name for clients (optional)", use: "Apply", working: "working …", unloadSure: "Unload {name}? Running requests get the server's grace period.",
  footer: "Own figures are measured in this browser; the rest is what /metrics and /server_info say.",
};

const KO = {
  chat: "채팅", lab: "실험실", models: "모델", newChat: "새 채팅", conversations: "대화 목록", settings: "설정",
  close: "닫기", menu: "대화 목록", theme: "밝게 / 어둡게", language: "View in English", skip: "입력창으로 건너뛰기",
  model: "모델", noModel: "로드된 모델이 없습니다.", loading: "서버가 모델을 불러오는 중입니다…", unreachable: "서버에 연결할 수 없습니다.",
  message: "메시지", placeholder: "무엇이든 물어보세요…", send: "보내기", stop: "중지", keys: "Enter 전송 · Shift+Enter 줄바꿈 · Esc 중지 · Alt+N 새 채팅 · Alt+1–3 화면 전환",
  hello: "무엇이 궁금하신가요?", helloSub: "답변은 이 서버에서 바로 생성되고, 대화는 이 브라우저에만 저장됩니다.",
  example1: "페이지 방식 KV 캐시가 어떻게 동작하는지 비유를 들어 설명해 줘.", example2: "정렬된 두 리스트를 합치는 파이썬 함수를 작성해 줘.", example3: "TCP와 UDP를 표로 비교해 줘.",
  you: "나", assistant: "답변", toolResult: "도구 결과", edit: "수정", retry: "다시 생성", copy: "복사", copied: "복사됨", notCopied: "복사 실패", code: "코드",
  remove: "삭제", removeSure: "이 대화를 삭제할까요?", cancel: "취소", resend: "다시 보내기", untitled: "제목 없음",
  thinking: "생각하는 중…", thought: "생각 과정", stopped: "중지됨", cutOff: "max_tokens에 도달함", waiting: "첫 토큰을 기다리는 중…",
  rate: "토큰/초", rateHelp: "첫 토큰 이후의 초당 토큰 수", ttft: "TTFT", ttftHelp: "첫 토큰까지 걸린 시간(이 브라우저에서 측정)",
  prompt: "프롬프트", cached: "캐시", output: "출력", thoughts: "생각", total: "전체",
  call: "도구 호출", callResult: "모델에 전달할 결과", sendResult: "결과 보내기", callPlaceholder: "{\"temperature_c\": 21}",
  export: "내보내기", import: "가져오기", imported: "가져온 대화: ", notImported: "이 페이지에서 내보낸 대화 파일이 아닙니다.", full: "브라우저 저장 공간이 부족해 대화를 저장하지 못했습니다.",
  keySection: "키", apiKey: "API 키", adminKey: "관리자 키", keyHelp: "이 탭을 닫을 때까지만 보관하며, 이 서버에만 보냅니다.",
  needKey: "API 키가 없거나 올바르지 않습니다. 설정에서 입력해 주세요.", openSettings: "설정 열기",
  system: "시스템 프롬프트", sampling: "샘플링", samplingHelp: "비워 두면 서버 기본값을 사용합니다.", format: "구조화된 출력과 도구",
  think: "생각 모드", serverDefault: "모델 기본값", on: "켜기", off: "끄기", schema: "JSON 스키마", tool: "도구 정의", toolChoice: "도구 선택",
  tryExample: "예시 넣기", clear: "지우기", badJson: "올바른 JSON이 아닙니다", notNumber: "숫자가 아닙니다", reset: "모두 초기화",
  live: "실시간", paused: "일시 정지", every: "1초마다 갱신", notAvailable: "제공되지 않음", unknownYet: "아직 없음",
  stepTime: "스텝 시간", stepTimeHelp: "최근 1분간 엔진 스레드가 시간을 쓴 곳", plan: "계획", execute: "실행", commit: "반영·전송", idle: "유휴", perStep: "스텝당", steps: "종류별 스텝", prefill: "프리필", decode: "디코드", mixed: "혼합", failed: "실패",
  pages: "KV 페이지", pagesHelp: "한 페이지에 토큰 {n}개의 키와 값이 들어갑니다", requests: "요청", tree: "프리픽스 트리", free: "비어 있음", hostTier: "호스트 계층", used: "사용 중", evicted: "복사 없이 밀려난 페이지",
  memory: "메모리", weights: "가중치", kvPool: "KV 풀", hostPool: "호스트 계층", process: "프로세스 전체(RSS)",
  queue: "대기열", policy: "정책", running: "실행 중", waitingRequests: "대기 중", forCapacity: "자리 대기", forPrefix: "프리픽스 대기", waitingTokens: "계산할 토큰", preempted: "선점됨", queueTime: "평균 대기 시간", limit: "최대",
  cache: "프리픽스 캐시", hitRate: "캐시에서 가져온 프롬프트 토큰", sinceStart: "시작 이후", lastMinute: "최근 1분", resultCache: "결과 캐시", hits: "적중", misses: "미스",
  speculation: "추측 디코딩", acceptance: "채택된 초안 토큰", perDraft: "스텝당 채택 수", byPosition: "위치별 채택 수",
  speed: "속도", outputRate: "초당 출력 토큰", promptRate: "초당 프롬프트 토큰", meanTtft: "평균 TTFT", meanItl: "평균 토큰 간격",
  server: "서버", device: "장치", executor: "실행기", context: "컨텍스트", kernels: "커널", tokens: "토큰", version: "버전", maxRunning: "최대 동시 실행",
  adminHelp: "모델을 로드하거나 재우고 깨우려면 관리자 키(--admin-api-key)가 필요합니다.", noAdmin: "이 서버는 --admin-api-key 없이 실행되어 여기서 모델을 변경할 수 없습니다. 현재 제공 중인 모델만 표시합니다.",
  wrongAdmin: "관리자 키가 없거나 올바르지 않습니다.", load: "로드", unload: "언로드", sleep: "재우기", wake: "깨우기", state: "상태", healthy: "정상", unhealthy: "이상", done: "완료: ",
  ready: "준비됨", asleep: "잠듦", loadingState: "로드 중", unloaded: "언로드됨", waking: "깨우는 중", falling_asleep: "재우는 중", unloading: "언로드 중", failedState: "실패",
  loadNew: "다른 모델 로드", loadNewHelp: "폴더, 허브 ID(org/name) 또는 synthetic:<preset>", loadName: "클라이언트용 이름(선택)", use: "적용", working: "처리 중…", unloadSure: "{name} 모델을 언로드할까요? 실행 중인 요청은 유예 시간 안에 끝나야 합니다.",
  footer: "답변 아래의 수치는 이 브라우저에서 측정한 값이고, 나머지는 /metrics와 /server_info의 값입니다.",
};

const TEXTS = { en: EN, ko: KO };

let language = setting("language") ?? (navigator.languages.find((one) => /^(ko|en)\b/i.test(one)) ?? "en").slice(0, 2).toLowerCase();
if (!TEXTS[language]) language = "en";

export const current = () => language;

export const t = (name) => TEXTS[language][name] ?? name;

export function setLanguage(next) {
  language = setting("language", next);
  translate();
}

// Fills the texts of index.html.
export function translate() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of document.querySelectorAll("[data-t-label]")) {
    element.setAttribute("aria-label", t(element.dataset.tLabel));
    element.title = t(element.dataset.tLabel);
  }
  for (const element of document.querySelectorAll("[data-t-placeholder]")) element.placeholder = t(element.dataset.tPlaceholder);
}

export const number = (value, digits = 0) =>
  new Intl.NumberFormat(language, { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(value);

export function duration(ms) {
  if (ms < 1) return `${number(ms * 1000)} µs`;
  if (ms < 1000) return `${number(ms, ms < 10 ? 1 : 0)} ms`;
  return `${number(ms / 1000, ms < 10000 ? 2 : 1)} s`;
}

export function bytes(n) {
  const unit = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  let value = n;
  while (value >= 1024 && at < unit.length - 1) [value, at] = [value / 1024, at + 1];
  return `${number(value, at && value < 100 ? 1 : 0)} ${unit[at]}`;
}
