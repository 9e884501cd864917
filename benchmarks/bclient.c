// bclient: cheap HTTP/1.1 bulk client. PUT bodies by sendfile from a memfd, GET bodies dropped with MSG_TRUNC.
// bclient put|get PORT PATH(%d -> worker, %n -> iteration) SIZE CONC N [--verify] [--chunked]
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>
#include <stdint.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <sys/socket.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <arpa/inet.h>
#define PAT (64u<<20)
static int patfd,port,conc,iters,isput,verify,chunked; static unsigned char*pat; static uint64_t size; static const char*pathT;
static uint64_t okc,badc,bytes; static int laststatus;
static double now(){struct timespec t;clock_gettime(CLOCK_MONOTONIC,&t);return t.tv_sec+t.tv_nsec*1e-9;}
static int sendn(int fd,const char*b,size_t n,int fl){while(n){ssize_t r=send(fd,b,n,MSG_NOSIGNAL|fl);if(r<=0)return -1;b+=r;n-=r;}return 0;}
static void mkpath(char*o,size_t cap,int w,int n){size_t k=0;for(const char*p=pathT;*p&&k+16<cap;p++){if(p[0]=='%'&&p[1]=='d'){k+=sprintf(o+k,"%d",w);p++;}else if(p[0]=='%'&&p[1]=='n'){k+=sprintf(o+k,"%d",n);p++;}else o[k++]=*p;}o[k]=0;}
static int conn1(){int f=socket(AF_INET,SOCK_STREAM,0),one=1;struct sockaddr_in a={.sin_family=AF_INET,.sin_port=htons(port),.sin_addr={htonl(INADDR_LOOPBACK)}};setsockopt(f,IPPROTO_TCP,TCP_NODELAY,&one,sizeof one);if(connect(f,(void*)&a,sizeof a)){perror("connect");return -1;}return f;}
static char* hdr(char*h,const char*n){char*p=strcasestr(h,n);return p?p+strlen(n):0;}
static void*work(void*arg){int w=(intptr_t)arg;char*buf=malloc(1<<20);int fd=conn1();if(fd<0){__sync_fetch_and_add(&badc,1);return 0;}
 for(int it=0;it<iters;it++){char path[2048],h[4096];mkpath(path,sizeof path,w,it);int n;
  if(isput) n=chunked?sprintf(h,"PUT %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nTransfer-Encoding: chunked\r\nContent-Type: application/octet-stream\r\n\r\n",path,port):sprintf(h,"PUT %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: %llu\r\nContent-Type: application/octet-stream\r\n\r\n",path,port,(unsigned long long)size);
  else n=sprintf(h,"GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n",path,port);
  if(sendn(fd,h,n,0))goto fail;
  if(isput){uint64_t left=size,a=0;while(left){off_t off=a%PAT;size_t k=PAT-off;if(k>left)k=left;if(k>(1u<<20))k=1u<<20;if(chunked){char c[32];int m=sprintf(c,"%zx\r\n",k);if(sendn(fd,c,m,MSG_MORE))goto resp;size_t kk=k;while(kk){ssize_t r=sendfile(fd,patfd,&off,kk);if(r<=0)goto resp;kk-=r;}if(sendn(fd,"\r\n",2,MSG_MORE))goto resp;a+=k;left-=k;}else{ssize_t r=sendfile(fd,patfd,&off,k);if(r<=0){goto resp;}a+=r;left-=r;}} if(chunked&&sendn(fd,"0\r\n\r\n",5,0))goto resp;}
 resp:; size_t have=0;char*e=0;buf[0]=0;for(;;){ssize_t r=recv(fd,buf+have,65535-have,0);if(r<=0)goto fail;have+=r;buf[have]=0;if((e=memmem(buf,have,"\r\n\r\n",4)))break;}
  e+=4; int st=atoi(buf+9); laststatus=st; *(e-2)=0; if(st==100){memmove(buf,e,have-(e-buf));have-=e-buf;goto resp;}
  char*cl=hdr(buf,"\r\ncontent-length:"),*te=hdr(buf,"\r\ntransfer-encoding:"); char*cn=hdr(buf,"\r\nconnection:"); int cls=cn&&strcasestr(cn,"close")&&strcasestr(cn,"close")<e; uint64_t got=have-(e-buf); int bad=0;
  if(st==204||st==304){}
  else if(cl){uint64_t len=strtoull(cl,0,10);uint64_t pos=0; if(verify&&!isput&&st==200){ if(memcmp(e,pat,got))bad=1; pos=got; while(pos<len){ssize_t r=recv(fd,buf,1<<20,0);if(r<=0)goto fail;size_t o=pos%PAT,k=r;size_t x=PAT-o<k?PAT-o:k;if(memcmp(buf,pat+o,x)||(k>x&&memcmp(buf+x,pat,k-x)))bad=1;pos+=r;} if(len!=size)bad=1; }
    else { while(got<len){ssize_t r=recv(fd,0,len-got>(4u<<20)?(4u<<20):len-got,MSG_TRUNC);if(r<=0)goto fail;got+=r;} pos=len;} if(!isput)__sync_fetch_and_add(&bytes,len);}
  else if(te){ // chunked response: parse cheaply
    uint64_t total=0; char*p=e; size_t rem=got; 
    for(;;){ char*nl; while(!(nl=memmem(p,rem,"\r\n",2))){ memmove(buf,p,rem);p=buf; ssize_t r=recv(fd,buf+rem,(rem<2000?65536:131072)-rem,0); if(r<=0)goto fail; rem+=r; }
      uint64_t k=strtoull(p,0,16); rem-=nl+2-p; p=nl+2; if(k==0){ while(rem<2){ssize_t r=recv(fd,buf,2-rem,0);if(r<=0)goto fail;rem+=r;} break; }
      uint64_t need=k+2; uint64_t vpos=total; total+=k; 
      if(verify){ uint64_t dk=k; while(dk){ if(!rem){ssize_t r=recv(fd,buf,65536,0);if(r<=0)goto fail;p=buf;rem=r;} size_t x=rem<dk?rem:dk; size_t o=vpos%PAT; if(x>PAT-o)x=PAT-o; if(memcmp(p,pat+o,x))bad=1; vpos+=x;dk-=x;p+=x;rem-=x;need-=x; } }
      if(rem>=need){p+=need;rem-=need;} else { need-=rem; rem=0; p=buf; while(need){ssize_t r=recv(fd,0,need,MSG_TRUNC);if(r<=0)goto fail;need-=r;} } }
    if(!isput){__sync_fetch_and_add(&bytes,total); if(size&&total!=size)bad=1;} }
  if(isput&&st/100==2)__sync_fetch_and_add(&bytes,size);
  if(st/100==2&&!bad)__sync_fetch_and_add(&okc,1);else{__sync_fetch_and_add(&badc,1);if(badc<3){fprintf(stderr,"bad: status %d mismatch %d: %.200s\n",st,bad,buf);}}
  if(cls){close(fd);fd=conn1();}
 } close(fd);return 0;
fail: __sync_fetch_and_add(&badc,1);fprintf(stderr,"conn failed: %s status=%d\n",strerror(errno),laststatus);return 0;}
int main(int ac,char**av){signal(SIGPIPE,SIG_IGN);if(ac<7)return 2;isput=!strcmp(av[1],"put");port=atoi(av[2]);pathT=av[3];size=strtoull(av[4],0,10);conc=atoi(av[5]);iters=atoi(av[6]);for(int i=7;i<ac;i++){if(!strcmp(av[i],"--verify"))verify=1;if(!strcmp(av[i],"--chunked"))chunked=1;}
 patfd=memfd_create("pat",0);if(ftruncate(patfd,PAT))return 1;pat=mmap(0,PAT,PROT_READ|PROT_WRITE,MAP_SHARED,patfd,0);uint64_t x=88172645463325252ull;for(size_t i=0;i<PAT;i+=8){x^=x<<13;x^=x>>7;x^=x<<17;memcpy(pat+i,&x,8);}
 pthread_t t[256];double t0=now();for(int i=0;i<conc;i++)pthread_create(&t[i],0,work,(void*)(intptr_t)i);for(int i=0;i<conc;i++)pthread_join(t[i],0);double dt=now()-t0;
 printf("{\"secs\":%.4f,\"bytes\":%llu,\"MBps\":%.1f,\"ok\":%llu,\"bad\":%llu,\"status\":%d,\"rps\":%.1f}\n",dt,(unsigned long long)bytes,bytes/dt/1e6,(unsigned long long)okc,(unsigned long long)badc,laststatus,okc/dt);return badc?1:0;}
