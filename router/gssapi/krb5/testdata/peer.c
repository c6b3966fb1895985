/*
 * The other end of a context, by MIT's libgssapi_krb5. It talks in lines:
 *
 *   peer init SERVICE@HOST    peer accept
 *
 *   < T HEX     a token of the context; "-" is none      > T HEX
 *   < DONE NAME FLAGS                                    the context is complete
 *   > W CONF HEX   wrap            < M HEX
 *   > R CONF HEX   wrap, rotated   < M HEX
 *   > U HEX        unwrap          < D CONF MAJOR HEX
 *   < E TEXT                                             something went wrong
 */
#include <gssapi/gssapi.h>
#include <gssapi/gssapi_ext.h>
#include <gssapi/gssapi_krb5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char line[1 << 20];

static void hex(const gss_buffer_desc *b)
{
	size_t i;
	if (b->length == 0)
		putchar('-');
	for (i = 0; i < b->length; i++)
		printf("%02x", ((unsigned char *)b->value)[i]);
	putchar('\n');
	fflush(stdout);
}

static gss_buffer_desc unhex(const char *s)
{
	gss_buffer_desc b = {0, malloc(strlen(s) / 2 + 1)};
	unsigned x;
	while (sscanf(s, "%2x", &x) == 1 && s[0] != '-') {
		((unsigned char *)b.value)[b.length++] = x;
		s += 2;
	}
	return b;
}

static void fail(const char *what, OM_uint32 major, OM_uint32 minor)
{
	OM_uint32 m, more = 0;
	gss_buffer_desc text;
	printf("E %s:", what);
	gss_display_status(&m, major, GSS_C_GSS_CODE, GSS_C_NO_OID, &more, &text);
	printf(" %.*s", (int)text.length, (char *)text.value);
	more = 0;
	gss_display_status(&m, minor, GSS_C_MECH_CODE, (gss_OID)gss_mech_krb5, &more, &text);
	printf(" (%.*s)\n", (int)text.length, (char *)text.value);
	fflush(stdout);
}

static char *next(void)
{
	if (!fgets(line, sizeof line, stdin))
		exit(0);
	line[strcspn(line, "\n")] = 0;
	return line;
}

int main(int argc, char **argv)
{
	OM_uint32 major, minor, flags = 0;
	gss_ctx_id_t ctx = GSS_C_NO_CONTEXT;
	gss_name_t name = GSS_C_NO_NAME, peer = GSS_C_NO_NAME, self = GSS_C_NO_NAME;
	gss_buffer_desc in = GSS_C_EMPTY_BUFFER, out = GSS_C_EMPTY_BUFFER, text;
	int init = argc == 3 && !strcmp(argv[1], "init");

	if (init) {
		text.value = argv[2];
		text.length = strlen(argv[2]);
		major = gss_import_name(&minor, &text, GSS_C_NT_HOSTBASED_SERVICE, &name);
		if (GSS_ERROR(major))
			return fail("import", major, minor), 1;
	} else {
		in = unhex(next() + 2);
	}
	do {
		if (init)
			major = gss_init_sec_context(&minor, GSS_C_NO_CREDENTIAL, &ctx, name,
				(gss_OID)gss_mech_krb5,
				GSS_C_MUTUAL_FLAG | GSS_C_REPLAY_FLAG | GSS_C_SEQUENCE_FLAG, 0,
				GSS_C_NO_CHANNEL_BINDINGS, &in, NULL, &out, &flags, NULL);
		else
			major = gss_accept_sec_context(&minor, &ctx, GSS_C_NO_CREDENTIAL, &in,
				GSS_C_NO_CHANNEL_BINDINGS, NULL, NULL, &out, &flags, NULL, NULL);
		if (out.length > 0) {
			printf("T ");
			hex(&out);
		}
		if (GSS_ERROR(major))
			return fail("context", major, minor), 1;
		if (major & GSS_S_CONTINUE_NEEDED)
			in = unhex(next() + 2);
	} while (major & GSS_S_CONTINUE_NEEDED);

	gss_inquire_context(&minor, ctx, &self, &peer, NULL, NULL, NULL, NULL, NULL);
	gss_display_name(&minor, init ? peer : self, &text, NULL);
	printf("DONE %.*s %u\n", (int)text.length, (char *)text.value, flags);
	fflush(stdout);

	for (;;) {
		char *cmd = next();
		int conf = cmd[2] == '1', got;
		if (cmd[0] == 'W') {
			in = unhex(cmd + 4);
			major = gss_wrap(&minor, ctx, conf, GSS_C_QOP_DEFAULT, &in, &got, &out);
			if (GSS_ERROR(major) || got != conf) {
				fail("wrap", major, minor);
				continue;
			}
			printf("M ");
			hex(&out);
		} else if (cmd[0] == 'R') {
			/* Without a trailer its bytes go before the data. */
			gss_iov_buffer_desc iov[2];
			in = unhex(cmd + 4);
			memset(iov, 0, sizeof iov);
			iov[0].type = GSS_IOV_BUFFER_TYPE_HEADER | GSS_IOV_BUFFER_FLAG_ALLOCATE;
			iov[1].type = GSS_IOV_BUFFER_TYPE_DATA;
			iov[1].buffer = in;
			major = gss_wrap_iov(&minor, ctx, conf, GSS_C_QOP_DEFAULT, &got, iov, 2);
			if (GSS_ERROR(major)) {
				fail("wrap_iov", major, minor);
				continue;
			}
			out.length = iov[0].buffer.length + iov[1].buffer.length;
			out.value = malloc(out.length);
			memcpy(out.value, iov[0].buffer.value, iov[0].buffer.length);
			memcpy((char *)out.value + iov[0].buffer.length, iov[1].buffer.value, iov[1].buffer.length);
			printf("M ");
			hex(&out);
		} else if (cmd[0] == 'U') {
			in = unhex(cmd + 2);
			major = gss_unwrap(&minor, ctx, &in, &out, &got, NULL);
			if (GSS_ERROR(major)) {
				fail("unwrap", major, minor);
				continue;
			}
			printf("D %d %u ", got, major);
			hex(&out);
		}
	}
}
