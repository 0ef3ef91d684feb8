// The page's texts, by the browser's language or the reader's choice: name | English | Korean.

import { setting } from "./conversations.js";

const TEXTS = new Map(`
chat|Chat|채팅
lab|Lab|실험실
models|Models|모델
newChat|New chat|새 채팅
conversations|Conversations|대화 목록
settings|Settings|설정
close|Close|닫기
theme|Light or dark|밝게 / 어둡게
language|한국어로 보기|View in English
skip|To the message box|입력창으로 건너뛰기
model|Model|모델
noModel|No model is loaded.|로드된 모델이 없습니다.
unreachable|The server cannot be reached.|서버에 연결할 수 없습니다.
message|Message|메시지
placeholder|Ask anything …|무엇이든 물어보세요…
send|Send|보내기
stop|Stop|중지
keys|Enter sends · Shift+Enter new line · Esc stops · Alt+N new chat · Alt+1–3 views|Enter 전송 · Shift+Enter 줄바꿈 · Esc 중지 · Alt+N 새 채팅 · Alt+1–3 화면 전환
hello|What would you like to know?|무엇이 궁금하신가요?
helloSub|Conversations stay in this browser.|대화는 이 브라우저에만 저장됩니다.
user|You|나
assistant|Answer|답변
edit|Edit|수정
retry|Retry|다시 생성
copy|Copy|복사
copied|Copied|복사됨
notCopied|Not copied|복사 실패
remove|Delete|삭제
removeSure|Delete this conversation?|이 대화를 삭제할까요?
cancel|Cancel|취소
thought|Thoughts|생각 과정
stopped|stopped|중지됨
cutOff|max_tokens reached|max_tokens에 도달함
waiting|Waiting for the first token …|첫 토큰을 기다리는 중…
rate|tok/s|토큰/초
prompt|prompt|프롬프트
cached|cached|캐시
output|output|출력
total|total|전체
tool|Tool call|도구 호출
callResult|Result for the model|모델에 전달할 결과
export|Export|내보내기
import|Import|가져오기
imported|Conversations added: |가져온 대화: 
notImported|This file has no conversations of this page.|이 페이지에서 내보낸 대화 파일이 아닙니다.
full|This browser has no room for the conversation.|브라우저 저장 공간이 부족해 대화를 저장하지 못했습니다.
apiKey|API key (until this tab is closed)|API 키 (탭을 닫으면 지워짐)
adminKey|Admin key|관리자 키
needKey|Enter the API key in the settings.|설정에서 API 키를 입력해 주세요.
system|System prompt|시스템 프롬프트
sampling|Sampling (empty: the server's default)|샘플링 (비워 두면 서버 기본값)
format|Structured output and tools|구조화된 출력과 도구
think|Thoughts|생각 모드
unset|default|기본값
on|on|켜기
off|off|끄기
schema|JSON schema|JSON 스키마
definition|Tool definition|도구 정의
toolChoice|Tool choice|도구 선택
example|Example|예시 넣기
badJson|is not valid JSON|올바른 JSON이 아닙니다
reset|Reset all|모두 초기화
live|Live|실시간
paused|Paused|일시 정지
none|not available|제공되지 않음
recent|In the last minute|최근 1분
sinceStart|Since the start|시작 이후
stepTime|Time of a step|스텝 시간
plan|Plan|계획
execute|Execute|실행
commit|Commit and send|반영·전송
idle|Idle|유휴
steps|Steps|스텝
pages|KV pages|KV 페이지
pagesHelp|Tokens in a page: |페이지당 토큰: 
requests|Requests|요청
tree|Prefix tree|프리픽스 트리
free|Free|비어 있음
hostTier|Host tier|호스트 계층
evicted|Evicted without a copy|복사 없이 밀려난 페이지
memory|Memory|메모리
weights|Weights|가중치
kvPool|KV pool|KV 풀
workspace|Workspace|작업 공간
graphs|Graphs (at most)|그래프(최대)
reserve|Reserve of the driver|드라이버 예비
others|Others, at the start|시작 시 다른 프로그램
notMeasured|not measured|측정되지 않음
process|Process (RSS)|프로세스(RSS)
queue|Queue|대기열
policy|Policy|정책
running|running|실행 중
waitingRequests|waiting|대기 중
capacity|Waiting for room|자리 대기
deferred|Waiting for a prefix|프리픽스 대기
waitingTokens|Tokens to compute|계산할 토큰
requestsHelp|The admin key (Models view) shows the requests one by one.|관리자 키(모델 화면)를 입력하면 요청을 하나씩 볼 수 있습니다.
id|Id|ID
stateOf|State, or why it waits|상태 또는 대기 이유
priority|Priority|우선순위
computed|computed|계산됨
age|Age|경과 시간
wait_new|arrived after the last plan|마지막 계획 이후 도착
wait_preempted|preempted for decoding requests|디코딩 요청에 페이지를 내줌
wait_order|after an earlier request in the queue|대기열 앞의 요청을 기다림
wait_batch_full|batch is full:|배치가 가득 참:
wait_token_budget|the step's prompt tokens are spent:|스텝의 프롬프트 토큰을 다 씀:
wait_pages|not enough free KV pages, needed / available:|빈 KV 페이지 부족, 필요 / 사용 가능:
wait_shared_prefix|another request computes its prefix|다른 요청이 같은 프리픽스를 계산 중
wait_grammar|held for its grammar's mask|문법 마스크를 기다림
wait_restore|its prefix comes from the host tier|호스트 계층에서 프리픽스를 가져오는 중
preempted|Preempted|선점됨
queueTime|Mean wait|평균 대기 시간
maxRunning|Running at most|최대 동시 실행
cache|Prefix cache|프리픽스 캐시
hitRate|Prompt tokens from the cache|캐시에서 가져온 프롬프트 토큰
resultCache|Result cache: hits / misses|결과 캐시: 적중 / 미스
speculation|Speculation|추측 디코딩
acceptance|Drafted tokens accepted|채택된 초안 토큰
perDraft|Accepted a step|스텝당 채택
speed|Speed|속도
outputRate|Output tokens a second|초당 출력 토큰
promptRate|Prompt tokens a second|초당 프롬프트 토큰
meanTtft|Mean TTFT|평균 TTFT
meanItl|Mean time between tokens|평균 토큰 간격
executor|Executor|실행기
context|Context|컨텍스트
adminHelp|Changes need the admin key (--admin-api-key).|변경하려면 관리자 키(--admin-api-key)가 필요합니다.
load|Load|로드
unload|Unload|언로드
sleep|Sleep|재우기
wake|Wake|깨우기
working|working …|처리 중…
loadNew|Load another model|다른 모델 로드
loadNewHelp|A folder, a hub id (org/name) or synthetic:<preset>|폴더, 허브 ID(org/name) 또는 synthetic:<preset>
loadName|Name for clients (optional)|클라이언트용 이름(선택)
use|Apply|적용
unloadSure|Unload this model? |이 모델을 언로드할까요? 
ready|ready|준비됨
asleep|asleep|잠듦
loading|loading|로드 중
unloaded|unloaded|언로드됨
failed|failed|실패
prefill|prefill|프리필
decode|decode|디코드
mixed|mixed|혼합
`.trim().split("\n").map((line) => line.split("|")).map(([name, ...texts]) => [name, texts]));
const LANGUAGES = ["en", "ko"];

const preferred = setting("language") ?? navigator.languages.find((one) => /^(ko|en)\b/i.test(one)) ?? "en";
let at = Math.max(0, LANGUAGES.indexOf(preferred.slice(0, 2).toLowerCase()));

export const language = () => LANGUAGES[at];

export const t = (name) => TEXTS.get(name)?.[at] ?? name;

export function switchLanguage() {
	at = 1 - at;
	setting("language", language());
}

// Fills the texts of index.html.
export function translate() {
	document.documentElement.lang = language();
	for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
	for (const element of document.querySelectorAll("[data-label]")) element.ariaLabel = element.title = t(element.dataset.label);
}

export const number = (value, digits = 0) =>
	new Intl.NumberFormat(language(), { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(value);

export function duration(ms) {
	if (ms < 1) return `${number(ms * 1000)} µs`;
	return ms < 1000 ? `${number(ms, ms < 10 ? 1 : 0)} ms` : `${number(ms / 1000, 2)} s`;
}

export function bytes(n) {
	const at = n ? Math.min(4, Math.floor(Math.log2(n) / 10)) : 0;
	return `${number(n / 1024 ** at, at ? 1 : 0)} ${["B", "KiB", "MiB", "GiB", "TiB"][at]}`;
}
